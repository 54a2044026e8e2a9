"""Embeddings of which one shard ends every process that makes it, as a decoder that crashes would."""

import os
import signal
from dataclasses import replace

from semdedup_assets.execution.context import StageContext
from semdedup_assets.execution.partitions import Partition
from semdedup_assets.execution.stage import Worker
from semdedup_assets.stages.embeddings import STAGE as EMBEDDINGS
from semdedup_assets.storage.results import ResultRecord

POISONED = "s000002"


def _worker(context: StageContext) -> Worker:
    make = EMBEDDINGS.worker(context)

    def worker(partition: Partition) -> ResultRecord:
        if partition.shard == POISONED:
            os.kill(os.getpid(), signal.SIGKILL)
        record: ResultRecord = make(partition)
        return record

    return worker


STAGE = replace(EMBEDDINGS, worker=_worker)
