"""Section 2: would a look end a training that would have been chosen? Section 3: starts and rates."""
import sys, torch, numpy as np, pickle, collections
sys.path.insert(0, "/tmp/wt-study/src")
from pathlib import Path
from lora_mnist.measure.score import scores_of, temperature_of
from lora_mnist.measure.class_weights import class_weights, weighted_accuracy
from lora_mnist.measure.dial import offsets_to_try
from lora_mnist.lora.offset import Offset
torch.set_num_threads(1)
def offsets(d):
    if d["direction"] is None or not d["direction"].any(): return [0.0]
    o = Offset.__new__(Offset)
    nums=[n/4 for n in range(-40,41)]; taus=[t/20 for t in range(-20,61)]
    return None
def best_point(logits, label, direction, offs, W):
    s = scores_of(logits, label, direction, offs, W)
    i = int(s.argmax()); return float(s[i]), offs[i]
def per_image(logits, label, direction, off, W):
    """p^q of each image at the point, weighted so that sums compare with the score."""
    T = temperature_of(logits, label)
    p = ((logits.double() + off * direction.double()) / T).softmax(1).gather(1, label[:, None])[:, 0] ** .25
    n = label.bincount(minlength=logits.shape[1]).double()
    w = torch.from_numpy(np.asarray(W)) / (n + 1)
    return p * w[label]
def z_of(a, b):
    d = a - b
    # paired: variance of the sum of independent per-image differences about their class means would be finer
    return float(d.sum() / (d.pow(2).sum().sqrt() + 1e-12))
def analyse(file):
    d = torch.load(file, weights_only=False)
    label, head = d["head_val"]; label = label.long()
    K = head.shape[2]
    direction = d["direction"] if d["direction"] is not None else torch.zeros(K)
    W = class_weights(d["mix"], "mean_accuracy", label.bincount(minlength=K).numpy())
    offs = [n/4 for n in range(-40,41)] if d["one"] else [t/20 for t in range(-20,61)]
    offs = sorted(offs, key=abs) if direction.any() else [0.0]
    out = {"name": d["task"], "trainings": {}}
    base = head[0].float()
    refs = {}
    s0, _ = best_point(base, label, direction, [0.0], W); refs["base"] = (s0, per_image(base, label, direction, 0.0, W))
    so, oo = best_point(base, label, direction, offs, W); o = oo; refs["offset"] = (so, per_image(base, label, direction, o, W))
    if len(head) > 1:
        c = [best_point(h.float(), label, direction, offs, W) + (i,) for i, h in enumerate(head)]
        s, o, i = max(c); refs["head"] = (s, per_image(head[i].float(), label, direction, o, W))
    out["refs"] = refs; out["W"] = W
    tl, th = d["head_test"]; tl = tl.long()
    Wt = class_weights(d["mix"], "mean_accuracy", tl.bincount(minlength=K).numpy())
    def test(logits, off):
        pred = (logits.float() + off * direction).argmax(1)
        n = tl.bincount(minlength=K); e = tl[pred != tl].bincount(minlength=K)
        acc = 1 - e.sum().item() / len(tl); bal = 1 - (e[n > 0] / n[n > 0]).mean().item()
        return int(e.sum()), round(100 * bal, 2), int(e[d["targets"]].sum())
    out["test_base"] = test(th[0], 0.0)
    if len(head) > 1: out["test_head"] = test(th[i], o)
    for name, looks in d["record"].items():
        rows = {}
        for step, e in looks.items():
            scales = (0.1, 0.2, 0.4, 0.7, 1.0) if "test" in e else (0.2, 0.4, 1.0)
            at = {}
            for kind in ("mean", "last"):
                if kind not in e: continue
                ss = scales if kind == "mean" else (0.2, 0.4, 1.0)
                for s, lg in zip(ss, e[kind]):
                    sc, o = best_point(lg.float(), label, direction, offs, W)
                    at[kind, s] = (sc, o, per_image(lg.float(), label, direction, o, W))
            rows[step] = {"at": at, "seconds": e["train_seconds"]}
            if "test" in e:
                s = max((x for x in at if x[0] == "mean"), key=lambda x: at[x][0])
                best = (at[s][0], s[1], at[s][1])
                if so > best[0]: best = (so, 0.0, oo)
                lgs = th[0] if best[1] == 0 else e["test"][scales.index(best[1])]
                rows[step]["end"] = best; rows[step]["test"] = test(lgs, best[2])
        out["trainings"][name] = rows
    return out
refs_o = 0.0
if __name__ == "__main__":
    cache = Path("/tmp/looks/rules.pkl")
    done = pickle.load(cache.open("rb")) if cache.exists() else {}
    for f in sorted(Path("/tmp/looks/kept").glob("*.pt")):
        if f.name not in done:
            done[f.name] = analyse(f)
            pickle.dump(done, cache.open("wb"))
    print(len(done))


# --- eval4.py: rules of section "A training that has lost ends"; eval3.py: starts and rates ---
# import pickle, statistics as st, collections
# exec(open("/tmp/looks/eval3.py").read().split("recipes=")[0])
# def z(a,b):
#     d=a-b; return float(d.sum()/(d.pow(2).sum().sqrt()+1e-12))
# def best(at,kind="mean"):
#     return max(((v[0],k,v[2]) for k,v in at.items() if k[0]==kind and k[1] in (0.2,0.4,1.0)),key=lambda x:x[0])
# for Z in (-2.0,-2.5,-3.0,-3.3):
#   for falling in (True,False):
#     ended=wrong=chosen_n=0; saved=[]; names=[]
#     for name,d in done.items():
#         t=d["trainings"]; refs={k:v for k,v in d["refs"].items()}
#         order=[n for n in ("plain","dropout") if n in t and 400 in t[n]]
#         ends={n:max((v[0],k) for k,v in t[n][400]["at"].items() if k[0]=="mean") for n in order}
#         scores={n:r[0] for n,r in refs.items()}|{n:e[0] for n,e in ends.items()}
#         ch=max(scores,key=scores.get); chosen_n+= ch in order
#         rr=dict(refs)
#         for n in order:
#             prev=best(t[n][100]["at"])[0]; at_step=None
#             for step in (200,300):
#                 s,k,p=best(t[n][step]["at"]); ref=max(rr.values(),key=lambda r:r[0])
#                 if z(p,ref[1])<Z and (s<prev or not falling): at_step=step; break
#                 prev=s
#             if at_step:
#                 ended+=1; wrong+= n==ch; saved.append((400-at_step)/400); names.append(name.split(",")[0]+":"+n+"@"+str(at_step)+("!" if n==ch else ""))
#             else:
#                 e=ends[n]; rr[n]=(e[0],t[n][400]["at"][e[1]][2])
#     print(Z,falling,"ended",ended,"wrong",wrong,"of chosen",chosen_n,"saved",round(sum(saved),2),names)
# import pickle, statistics as st
# done = pickle.load(open("/tmp/looks/rules.pkl","rb"))
# group=lambda n: "transfer" if "lite0" in n else "half trained" if "half" in n else "timm/HF" if ("ConvNeXt" in n or "Hugging" in n or n.startswith("sprites")) else "small"
# recipes={"today":("plain","dropout"),"plain only":("plain",),"p+d1":("plain","d1"),"p+d3":("plain","d3"),"@head":("plain@head","dropout@head"),"@head p":("plain@head",),"@head p+d1":("plain@head","d1@head"),"@head p+d3":("plain@head","d3@head"),"p+d .003@head":("plain","dropout@head"),"p@head+d":("plain@head","dropout"),"p@head+d+d1@head":("plain@head","dropout","d1@head"),"p+d+d1":("plain","dropout","d1")}
# import collections
# res=collections.defaultdict(lambda: collections.defaultdict(list))
# for name,d in done.items():
#     b=d["test_base"]
#     for r,trs in recipes.items():
#         for steps in (100,200,400):
#             cands=[]
#             for t in trs:
#                 row=d["trainings"].get(t,{}).get(steps)
#                 if row and "end" in row: cands.append((row["end"][0],row["test"]))
#             if len(cands)<len(trs): continue
#             if "head" in d["refs"]: cands.append((d["refs"]["head"][0],d["test_head"]))
#             s,t=max(cands)
#             res[r,steps][group(name)].append((100*t[0]/max(b[0],1),100*(100-t[1])/max(100-b[1],.01)))
# import sys
# groups=["small","half trained","timm/HF","transfer"]
# for k,g in sorted(res.items()):
#     print(f"{k[0]:14} {k[1]:4} "+"  ".join(f"{x}({len(g[x])}) {st.fmean(v[0] for v in g[x]):5.1f}/{st.fmean(v[1] for v in g[x]):5.1f}" for x in groups if g[x]))
