"""What an operator sees from outside: metrics and the HTTP endpoint."""
