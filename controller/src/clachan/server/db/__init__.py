"""What the controller keeps: models, the engine, migrations."""
