def draw(table, path):
    return None
