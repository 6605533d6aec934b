"""The model card of a committed checkpoint: README.md with the metadata of the Hugging Face hub."""
