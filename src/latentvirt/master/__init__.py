"""What runs inside Buildbot: the only folder that imports it."""
