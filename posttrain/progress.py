"""What a person sees of a stage of post-training while it runs."""

from train.progress import Display, minutes
from train.trainer import Record


class StageDisplay(Display):
    """The training display with what reinforcement and fine-tuning have to say."""

    def describe(self, record: Record) -> tuple[str, str]:
        """Two lines, or two halves of one: what was learnt, and how long is left."""
        learnt = [f"step {record['step']}/{record['total']:.0f}", f"loss {record['loss']:.3f}"]
        for name, text in NAMES.items():
            if name in record:
                learnt.append(f"{text} {record[name]:.3g}")
        pace = [f"{record['seconds']:.0f} s"]
        if speed := self.speed():
            pace.append(f"{minutes((record['total'] - record['done']) / speed)} left")
        return "  ".join(learnt), "  ".join(pace)


NAMES = {
    "text": "text",
    "reward": "reward",
    "think_rate": "think",
    "length": "length",
    "signal": "signal",
    "entropy": "entropy",
    "k3": "k3",
}
