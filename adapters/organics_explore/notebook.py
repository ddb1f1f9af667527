# /// script
# requires-python = ">=3.11"
# dependencies = ["organics-core[explore]"]
#
# [tool.marimo.display]
# theme = "system"
# ///
"""The explorer as a marimo notebook: ``organics explore``, or ``marimo run`` with this file."""

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="full", app_title="ORGaNICs explorer")


@app.cell
def _():
    from urllib.parse import urlencode

    import marimo as mo

    import organics_explore as explore
    from organics_plot import style

    return explore, mo, style, urlencode


@app.cell
def _(explore, mo):
    start = explore.settings_from(mo.query_params().to_dict())
    labels = {
        "neurons": "neurons",
        "w_r": "spectral norm of W_r, with a sign",
        "seed": "seed of random W_r",
        "pool": "pool W: 0 is uniform, 8 narrow",
        "sigma": "σ, semi-saturation",
        "b": "b, input gain",
        "b0": "b₀, normalization gain",
        "tau_y": "τ_y, ms",
        "tau_a": "τ_a, ms",
        "contrast": "contrast",
    }
    kinds = mo.ui.dropdown(["identity", "random", "ring"], value=start.kind, label="W_r")
    numbers = {
        name: mo.ui.slider(
            low, high, step, value=getattr(start, name), label=labels[name], show_value=True, full_width=True
        )
        for name, (low, high, step) in explore.RANGES.items()
    }
    sliders = mo.ui.dictionary({"kind": kinds, **numbers})
    return (sliders,)


@app.cell
def _(explore, sliders):
    settings = explore.Settings(**sliders.value)
    solved = explore.solve(settings)
    return settings, solved


@app.cell
def _(explore, style):
    with style():
        panels = [explore.Picture(panel) for panel in explore.PANELS]
    return (panels,)


@app.cell
def _(mo, panels, solved, style):
    def drawn(picture):
        about = picture.panel.__doc__.partition("\n")[0]
        return mo.image(picture.png(solved), alt=about, width="100%", rounded=True)

    with style():
        pictures = [drawn(picture) for picture in panels]
    return (pictures,)


@app.cell
def _(explore, mo, pictures, settings, sliders, solved, urlencode):
    left = mo.vstack(
        [
            mo.md("**A circuit that normalizes**"),
            *sliders.elements.values(),
            mo.md(f"[Link to these settings](?{urlencode(settings._asdict())})"),
            mo.accordion({"The same in Python": mo.md(f"```python\n{explore.python_code(settings)}```")}),
        ]
    )
    rows = [mo.hstack(pictures[k : k + 3], widths="equal", align="start") for k in (0, 3)]
    right = mo.vstack([*rows, mo.md("**Fixed points**"), mo.md(explore.report(solved))], gap=1)
    mo.hstack([left, right], widths=[1, 4], align="start", gap=2)
    return


if __name__ == "__main__":
    app.run()
