"""Rules on what was measured, decided three ways: pass, fail, inconclusive."""
