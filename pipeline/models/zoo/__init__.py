"""The models of the zoo, one file for each family; helpers begin with an underscore."""
