"""From a torch network to the program that a packed file holds."""
