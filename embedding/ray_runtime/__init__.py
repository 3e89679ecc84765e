"""Everything that imports Ray, beside pipeline.py."""
