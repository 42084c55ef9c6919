"""Writes checkpoints as verl's FSDP2 workers do: ``python write_checkpoints.py CASES``, a list of cases in JSON.

A case has ``start`` (a Hugging Face directory; AdamW's moments are taken from an ``optimizer.safetensors`` in it),
``mesh`` (the number of workers; or of copies, and of workers of each), ``steps`` (AdamW steps to take), ``dtype`` and
``output``. Beside the checkpoint there comes a ``truth.safetensors``, in which every tensor is whole.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # the optimizer's first step does
import torch.distributed
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import distribute_tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel


def work(case: dict[str, Any], model: PreTrainedModel, rank: int) -> None:
    start, output, mesh_shape = Path(case["start"]), Path(case["output"]), tuple(case["mesh"])
    actor, workers = output / "actor", math.prod(mesh_shape)
    store = f"file://{output}/rendezvous"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=workers)
    mesh = init_device_mesh("cpu", mesh_shape, mesh_dim_names=("ddp", "fsdp")[-len(mesh_shape) :])
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    if (start / "optimizer.safetensors").is_file():
        moments = load_file(start / "optimizer.safetensors")
        for name, weight in model.named_parameters():
            whole = {moment: moments[f"{name}/{moment}"] for moment in ("step", "exp_avg", "exp_avg_sq")}
            optimizer.state[weight] = {
                moment: distribute_tensor(tensor.to(weight.dtype), mesh, weight.placements) if tensor.ndim else tensor
                for moment, tensor in whole.items()
            }
    for step in range(case["steps"]):
        generator = torch.Generator().manual_seed(10 * step + mesh.get_coordinate()[-1])
        ids = torch.randint(2, model.config.vocab_size, (2, 8), generator=generator)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.save(model.state_dict(), actor / f"model_world_size_{workers}_rank_{rank}.pt")
    torch.save(optimizer.state_dict(), actor / f"optim_world_size_{workers}_rank_{rank}.pt")
    truth = {name: weight.full_tensor() for name, weight in model.named_parameters()}
    for name, weight in model.named_parameters():
        for moment, tensor in optimizer.state[weight].items():
            truth[f"{name}/{moment}"] = tensor.full_tensor() if tensor.ndim else tensor
    if rank == 0:
        save_file({name: tensor.detach().contiguous() for name, tensor in truth.items()}, output / "truth.safetensors")
    torch.distributed.destroy_process_group()


def main(cases: list[dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    forked = multiprocessing.get_context("fork")  # each of the workers would else import all of torch
    for case in cases:
        start, actor, count = Path(case["start"]), Path(case["output"]) / "actor", math.prod(case["mesh"])
        actor.mkdir(parents=True)
        (actor / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": count}))
        model = AutoModelForCausalLM.from_pretrained(start, dtype=getattr(torch, case["dtype"]))
        model.config.save_pretrained(actor / "huggingface")
        model.generation_config.save_pretrained(actor / "huggingface")
        AutoTokenizer.from_pretrained(start).save_pretrained(actor / "huggingface")
        workers = [forked.Process(target=work, args=(case, model, rank)) for rank in range(count)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if any(worker.exitcode for worker in workers):
            sys.exit(f"a worker failed: {case}")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
