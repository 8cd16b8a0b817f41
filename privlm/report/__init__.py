"""Reads run directories and prints them: tables, comparisons, the page of a run. Imports no torch."""
