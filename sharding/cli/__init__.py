"""The `lpu` command: `main` runs it, `common` is what commands share; each other file is one."""
