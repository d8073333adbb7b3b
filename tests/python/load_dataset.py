"""datasets.load_dataset(FOLDER) as a user calls it: rows, ids and the bytes of pixels of every split, as JSON."""
import json, sys
import datasets

datasets.disable_progress_bars()
splits = datasets.load_dataset(sys.argv[1], cache_dir=sys.argv[2])
print(json.dumps({
    "version": datasets.__version__,
    "splits": {name: rows["id"][:] for name, rows in splits.items()},
    "columns": sorted({column for rows in splits.values() for column in rows.column_names}),
    "pixel_bytes": sum(len(pixels) for rows in splits.values() for pixels in rows["pixel_values"]),
}))
