"""How a weight is put on its grid, one method a file.

rtn    round to nearest
"""
