# The four property models that come with Druse, from models/ into runtime/druse/data: run it in the root of the sources.
# The same versions of Druse, PyTorch and onnxscript give the same bytes.
set -eu
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
for model in formation_energy band_gap band_gap_class formation_energy_class; do
    druse bundle build "models/cgcnn_$model.safetensors" "$place/cgcnn_$model" --zip --name cgcnn-mp20 --version 1 \
        --licence "MIT; trained on Materials Project data, CC BY 4.0 (Jain et al., APL Mater. 1, 011002, 2013)"
    mv "$place/cgcnn_$model.zip" runtime/druse/data/
done
