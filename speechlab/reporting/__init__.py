"""What a person looks at: curves and tables, made from the files that runs leave, never from live objects."""
