"""Losses on what happens inside of student and teacher. The teacher then runs beside the student in every step."""
