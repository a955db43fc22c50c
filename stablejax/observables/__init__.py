"""Observables: functions of one frame, and of a window of velocities."""
