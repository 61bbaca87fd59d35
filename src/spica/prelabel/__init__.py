"""The bulk job: predictions of one version for every task of a project that has none.

What is left to do is asked from Label Studio each time, so a job that was interrupted goes on where it stopped, and
running it twice changes nothing.
"""

from spica.prelabel.job import BulkJob, prelabel
from spica.prelabel.progress import Progress
from spica.prelabel.selection import Selection, prepare

__all__ = ["BulkJob", "Progress", "Selection", "prelabel", "prepare"]
