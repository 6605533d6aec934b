"""One distillation loss per file."""
