"""Curves, tables and pages for people. They are made from the files that runs leave, never from objects in memory."""
