"""What can be asked of the tables beyond whether they hold: who, how many, and what if."""
