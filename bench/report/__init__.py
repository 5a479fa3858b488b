"""Tables, plots and published pages, made from records."""
