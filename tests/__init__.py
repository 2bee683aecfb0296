"""The tests, room by room as the code; models.py makes what they run on."""
