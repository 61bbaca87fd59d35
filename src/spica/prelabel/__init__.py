"""The bulk job: predictions of one version for every task of a project that has none.

What is left to do is asked from Label Studio each time, so a job that was interrupted goes on where it stopped, and
running it again changes nothing.
"""
