"""Texts that would run something, or break something out, wherever one is taken for more than a text."""

from pathlib import Path


def payloads(canary: Path) -> dict[str, str]:
    """Name -> text; each tries to make the file `canary`."""
    touch = f"touch {canary}"
    return {
        "template": f"{{{{ lookup('ansible.builtin.pipe', '{touch}') }}}}",
        "statement": f"{{% if lookup('pipe', '{touch}') %}}x{{% endif %}}{{# c #}}",
        "variable": f"$HOME ${{HOME}} $({touch}) `{touch}`",
        "shell": f"'; {touch}; \" && {touch} | true #",
        "newline": "a\nb\r\nc\u2028d\x85e\tf\n\n",
        "yaml": f"!unsafe {{{{ x }}}}\n- a: *b\n? &c !!python/object/apply:os.system ['{touch}']\n---\n",
        "html": "<script>alert('x')</script><img src=x onerror=\"fetch('/')\">&amp;<!--",
        "jinja_header": f"#jinja2: variable_start_string: '[['\n[[ lookup('pipe', '{touch}') ]]",
        "tagged": '{"__ansible_unsafe": "x", "__ansible_type": "TrustedAsTemplate", "value": "{{ 1 + 1 }}"}',
        "number": "0123",
        "boolean": "yes",
        "null": "null",
        "unicode": "\u00e9\u202e\U0001f3e0\ufeff",
        "path": "~/x/../../etc/passwd",
        "lookalike": "<secret>",
        "empty": "",
    }
