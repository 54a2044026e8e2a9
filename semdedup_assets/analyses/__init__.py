"""What a person looks at: figures, galleries and tables that no later stage reads."""
