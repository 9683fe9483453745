"""Trainings from the base and from the head's layer; logits at looks are kept."""
import sys, time, copy, logging, shutil, json, warnings
from dataclasses import replace
from pathlib import Path
STUDY = Path("/tmp/wt-study/scripts/studies"); sys.path.insert(0, str(STUDY))
sys.path.insert(0, str(STUDY.parent))
import torch
import cases
from cases import Task, _LITE0, _RESNET10T, _small, _chess, _CONVNEXT, _HUGGINGFACE, CASES
cases.OUTPUT = Path("/tmp/looks/study")
from lightning.pytorch.callbacks import Callback
from lora_mnist.lora.model import set_lora_point
from lora_mnist.lora.point import Point, TRAINED
from lora_mnist.measure.predictions import logits_at
from lora_mnist.training.callbacks import TrainedAverage
from lora_mnist.training import attempt as A, repair as R
from lora_mnist.commands import train as T
from lora_mnist.lora.weight import offset_of
from lora_mnist.measure.class_weights import class_weights
from lora_mnist.measure.dial import images_of_dial

KEPT = Path("/tmp/looks/kept")
FULL = (100, 200, 400)
LOOKS = (50, 100, 150, 200, 300, 400)
SCALES = (0.1, 0.2, 0.4, 0.7, 1.0)
FEWER = (0.2, 0.4, 1.0)
now = {}

def logits(session, images, some, scales):
    out = [[] for _ in scales]; labels = []
    net = session.net.eval()
    for label, at in logits_at(net, session.classifier.dataset.batches(images, session.classifier.device, some, "x"), [Point(s) for s in scales]):
        labels.append(label)
        for column, each in zip(out, at): column.append(each.half())
    return torch.cat(labels), torch.stack([torch.cat(c) for c in out])

def evaluate(session, which, scales):
    images = {"val": session.images.val, "test": session.images.test}[which]
    some = images_of_dial(images.labels, 0) if which == "val" else now["test_some"]
    return logits(session, images, some, scales)

class Look(Callback):
    def __init__(self, session, training): self.session, self.training, self.spent = session, training, 0.
    def on_train_batch_end(self, trainer, module, *_):
        step = trainer.global_step
        if step not in LOOKS or step in now["record"].setdefault(self.training.name, {}): return
        t = time.process_time()
        entry = {"train_seconds": t - now["begun"][self.training.name] - self.spent}
        average = next(c for c in trainer.callbacks if isinstance(c, TrainedAverage))
        copies = average._copies()
        if step in (50, 100, 150, 200): entry["last"] = evaluate(self.session, "val", FEWER)[1]
        average._put(module, average._average)
        full = step in FULL
        entry["mean"] = evaluate(self.session, "val", SCALES if full else FEWER)[1]
        if full: entry["test"] = evaluate(self.session, "test", SCALES)[1]
        average._put(module, copies)
        set_lora_point(self.session.net, TRAINED); self.session.net.train()
        now["record"][self.training.name][step] = entry
        self.spent += time.process_time() - t

make = A._trainer_of
def trainer_of(session, training):
    trainer = make(session, training)
    if not training.last_layer:
        now.setdefault("begun", {})[training.name] = time.process_time()
        trainer.callbacks.append(Look(session, training))
    return trainer
A._trainer_of = trainer_of
# the search for the point is done afterwards
def advised(session, training):
    return old_advised(session, training) if training.last_layer else (TRAINED, {"base": {"score": 0, "weighted_accuracy": 1.0, "errors": 1}, "rows": [{"scale": s, "score": 1., "is_behind": False, "weighted_accuracy": 1.} for s in (0., 1.)], "images": 1, "choose_by": "mean_accuracy"})
old_advised = A._advised
A._advised = advised
old_head = T.train_head
def train_head(session, selection):
    t = time.process_time()
    trained = old_head(session, selection)
    now["head_seconds"] = time.process_time() - t
    now["head"] = max(trained.attempts, key=lambda a: a.score, default=None)
    test = session.images.test
    g = torch.Generator().manual_seed(0)
    now["test_some"] = torch.randperm(len(test), generator=g)[:now["tests"]].sort().values
    if now["head"] is not None:
        h = now["head"]
        put = A.put_tensors
        put(session, h.training, h.tensors)
        now["head_val"], now["head_test"] = (evaluate(session, w, (0.0, *SCALES)) for w in ("val", "test"))
        now["head_point"], now["head_curve"], now["head_rate"] = h.point, h.curve, h.training.rate
    return trained
T.train_head = train_head
old_trainings = R.trainings_of
def trainings_of(session, selection):
    planned = old_trainings(session, selection)
    if "last" in str(session.cfg.lora.target_modules): return planned
    now["targets"] = list(selection.targets)
    o = offset_of(session.net)
    now["direction"] = o.direction.clone() if o is not None else None
    now["one"] = bool(o and o.moves_one_class)
    now["mix"] = session.classifier.mix
    if "head_val" not in now:
        now["test_some"] = torch.arange(min(len(session.images.test), now["tests"]))
        now["head_val"], now["head_test"] = (evaluate(session, w, (0.0,)) for w in ("val", "test"))
    out = []
    for t in planned:
        out.append(t)
        if now["head"] is not None:
            start = dict(t.start)
            h = now["head"].tensors
            print("  shapes", {k: (tuple(start[k].shape), tuple(v.shape)) for k, v in h.items() if k in start and start[k].shape != v.shape}, [k for k in h if k not in start])
            if all(k in start and start[k].shape == v.shape for k, v in h.items()):
                out.append(replace(t, name=t.name + "@head", start={**start, **h}))
    wanted = now["wanted"]
    out = [t for t in out if wanted is None or t.name in wanted]
    return [replace(t, number=n + 1, of=len(out) + 1) for n, t in enumerate(out)]
R.trainings_of = trainings_of
R._at_next_rate = lambda attempts: None

TRIALS = ["+trials.d1={lora.dropout: 0.05, optimizer.lr: 0.001, batches.augmented: false}", "+trials.d3={lora.dropout: 0.05, optimizer.lr: 0.0003, batches.augmented: false}"]

def collect(task, seed, wanted=None, tests=1000):
    name = f"{task.title}, seed {seed}"
    file = KEPT / f"{name}.pt"
    if file.exists(): return
    t = time.process_time()
    base = task.base()
    print(name, "base", round(time.process_time() - t, 1), flush=True)
    now.clear(); now.update(record={}, head=None, wanted=wanted, tests=tests)
    t = time.process_time()
    try:
        task.run([f"base_ckpt='{base}'", "experiment=repair", f"target={task.target}", f"seed={seed}", "refit=false", *TRIALS], f"collect {seed}")
    except Exception as e:
        print("  FAILED", type(e).__name__, str(e)[:300], flush=True)
        if not now["record"]: return
    keep = {k: v for k, v in now.items() if k not in ("head", "begun")}
    keep["task"] = name
    torch.save(keep, file)
    print(name, "done", round(time.process_time() - t, 1), {n: round(max(e["train_seconds"] for e in r.values()), 1) for n, r in now["record"].items()}, flush=True)

by = {t.name: t for t in CASES}
def lite(source, n, size, steps, rate, **kw):
    cycle = f"scheduler=one_cycle batches.batch_size=50 optimizer.lr={rate} trainer.max_epochs=-1 trainer.max_steps={steps}"
    return Task(f"{source} lite0 {size}", source, kw.pop("target"), f"{_LITE0}{n} prepare.image_size={size}", cycle, **kw)
TRANSFER = [
    lite("chess", 6, 32, 300, 0.001, target="rook", most=400, few=60, test=200),
    lite("photos", 10, 32, 200, 0.001, target="eight", most=110, few=33, test=50),
    lite("sprites", 17, 48, 400, 0.001, target="weak", most=0, is_natural=True),
    lite("capitals", 10, 32, 200, 0.001, target="C", most=120, few=42, test=150),
    lite("clothes", 10, 32, 300, 0.001, target="6", most=400, few=60, test=100),
    lite("chess", 6, 48, 300, 0.001, target="queen", most=400, few=30, test=200),
]
def small(seed):
    tail = replace(by["clothes"], name="clothes tail", most=1000, imbalance=30, target="[6,7,8,9]", test=200)
    few = replace(by["clothes"], name="clothes few", most=300, few=30, target="6", test=200)
    names = ["photos", "capitals", "clothes", "half trained, natural mix", "sprites", "chess, ConvNeXt", "chess, Hugging Face ResNet"]
    return [replace(t, seed=seed, base_of=None) for t in [*(by[n] for n in names), few, tail]]
if __name__ == "__main__":
    warnings.filterwarnings("ignore"); torch.set_num_threads(1)
    for n in ("lightning.pytorch", "lora_mnist"): logging.getLogger(n).setLevel(logging.ERROR)
    which = sys.argv[1]
    if which == "small":
        for seed in (0, 1, 2):
            for task in small(seed): collect(task, seed)
    elif which == "transfer":
        for seed in (0, 1):
            for task in TRANSFER: collect(replace(task, seed=seed), seed, wanted=("plain", "dropout", "d1", "plain@head", "dropout@head", "d1@head", "d3@head"), tests=500)
