"""What a statement's text means, by PostgreSQL's own parser (postgast). Pure functions."""
