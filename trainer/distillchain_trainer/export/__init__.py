"""Exports of a committed student: made from its stored weights and compared with them on validation."""
