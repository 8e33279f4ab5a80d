"""Operations, one a file: what each means, its plain reference, its cost in operations and bytes."""
