def table_page(table, picture):
    from privlm.report.render import html_text

    return html_text(table)
