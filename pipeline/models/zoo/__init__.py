"""The models of the zoo, one file a family; helpers begin with an underscore."""
