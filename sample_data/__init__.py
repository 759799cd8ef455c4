"""The sample checkpoints, their records, and the script that makes them (`python sample_data/build.py`)."""
