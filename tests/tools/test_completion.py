"""`adalink completion`: what the shell answers with the script that it prints."""

import shutil
import subprocess

import pytest

from adalink_jax import cli


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    pytest.importorskip("shtab", reason="shtab is not installed")
    from adalink_jax.tools import completion

    folder = tmp_path_factory.mktemp("completion")
    parser = completion.whole_parser()
    for shell in ("bash", "zsh"):
        (folder / shell).write_text(completion.shtab.complete(parser, shell=shell))
    return folder


def completed(scripts, *words):
    """What bash offers for the last word."""
    code = f"source {scripts / 'bash'}; COMP_WORDS=({' '.join(words)}); "
    code += f"COMP_CWORD={len(words) - 1}; _shtab_adalink; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_bash_completes_commands_flags_and_macros(scripts):
    assert completed(scripts, "adalink", "ra") == {"rank-sweep"}
    assert completed(scripts, "adalink", "''") >= set(cli.COMMANDS)
    assert completed(scripts, "adalink", "adapter", "s") == {"stack", "split"}
    assert completed(scripts, "adalink", "train", "--gin.RA") == {"--gin.RANK"}
    assert completed(scripts, "adalink", "glue", "--me") == {"--methods"}
    assert completed(scripts, "adalink", "export", "--format", "st") == {"stablehlo"}


def test_zsh_reads_it(scripts):
    text = (scripts / "zsh").read_text()
    assert text.startswith("#compdef adalink\n")
    assert all(f"    {name}:'" in text for name in cli.COMMANDS)
    if shutil.which("zsh"):
        subprocess.run(["zsh", "-n", str(scripts / "zsh")], check=True)


def test_the_command_prints_it(scripts, capsys):
    assert cli.main(["completion", "bash"]) == 0
    assert capsys.readouterr().out == (scripts / "bash").read_text() + "\n"
    assert cli.main(["completion", "fish"]) == 2
