"""Training runs: preparation, sessions, the run directory, recording and display.

:func:`attnrl.runs.prepare.prepare` checks a configuration and builds the components of a run;
:func:`attnrl.runs.session.train` trains with these components until the run is over or interrupted.
"""
