"""The README's picture: the tops of two pages, as check_site photographed them. make picture"""

from __future__ import annotations

from check_notebooks import ROOT
from PIL import Image

SHOTS = ROOT / "_build" / "screenshots"
PAGES = ("book-index-desktop-light.png", "book-transport-lab-desktop-dark.png")
PICTURE = ROOT / "book" / "assets" / "site.webp"
HEIGHT, WIDTH, GAP = 1000, 1280, 40


def main() -> None:
    picture = Image.new("RGB", (2 * WIDTH + GAP, HEIGHT), "white")
    for number, name in enumerate(PAGES):
        with Image.open(SHOTS / name) as shot:
            picture.paste(
                shot.convert("RGB").crop((0, 0, WIDTH, HEIGHT)), (number * (WIDTH + GAP), 0)
            )
    picture.resize((1600, 1600 * HEIGHT // (2 * WIDTH + GAP)), Image.LANCZOS).save(
        PICTURE, quality=82
    )
    print(f"{PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
