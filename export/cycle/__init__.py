"""One day of the online loop: from the logs to a new version in the store.

cycle.py       the day from beginning to end
steps.py       the commands of the day, one subprocess each
run_step.py    running a step, unless its outputs are already complete
state.py       which steps are complete, by the digests of what they read and wrote
days.py        days, when they are final, and the folders of WORK
experiment.py  the experiment of a day: [data] limited to its window
start.py       the version that is served, and the run that training starts from
progressive.py how the served version predicted the day
report.py      cycle.json and cycle.md
retention.py   removing the large folders of old days
"""
