# docker build --target cpu -t jaxdiff .     then: docker run -v "$PWD:/work" jaxdiff train digits
# docker build --target gpu -t jaxdiff .     then: docker run --gpus all -v "$PWD:/work" jaxdiff train cifar10
FROM python:3.12-slim AS source
COPY . /source

FROM source AS gpu
RUN pip install --no-cache-dir "/source[cuda]" -c /source/constraints.txt
WORKDIR /work
ENTRYPOINT ["jaxdiff"]

FROM source AS cpu
RUN pip install --no-cache-dir /source -c /source/constraints.txt
WORKDIR /work
ENTRYPOINT ["jaxdiff"]
