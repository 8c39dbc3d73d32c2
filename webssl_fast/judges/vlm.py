from webssl_fast.judges.base import JudgeKind

KIND = None
