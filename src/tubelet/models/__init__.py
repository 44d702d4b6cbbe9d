"""The networks, one architecture a file, and the zoo that lists them."""
