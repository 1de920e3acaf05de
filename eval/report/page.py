def write_page(path, folders):
    pass
