"""How many slots a mixture's chips need, and how many rows each slot: counted, not measured."""
