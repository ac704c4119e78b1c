"""The algebra of modules: atoms, bonds, and what is made of them."""
