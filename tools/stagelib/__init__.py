"""The parts of tools/stages.py."""
