"""The networks: one published architecture a file. They know nothing of the zoo that lists them."""
