"""Not a namespace package, so that an installed package of the same name does not hide it."""
