"""How fast, and what for: the audit beside a plain drgn script over the same dump."""
