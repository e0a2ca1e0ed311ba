# syntax=docker/dockerfile:1
# Two stages on Debian 12: build with every -dev package, run with the shared libraries alone.
#
#   docker build -t mneme .
#   docker run -p 7447:7447 -v mneme-data:/var/lib/mneme -v $PWD/models:/models:ro mneme \
#     --model smollm2=/models/SmolLM2-135M-Instruct.Q4_1.gguf
FROM debian:12-slim AS build
WORKDIR /src
COPY deploy/install_packages.sh deploy/
RUN deploy/install_packages.sh build
COPY . .
RUN cmake --preset release -DMNEME_BUILD_TESTS=OFF -DMNEME_BUILD_BENCH=OFF \
 && cmake --build --preset release --target mneme-server mneme \
 && cmake --install build-release --prefix /opt/mneme --strip --component runtime

FROM debian:12-slim
COPY deploy/install_packages.sh /tmp/
RUN /tmp/install_packages.sh runtime && rm -rf /tmp/install_packages.sh /var/lib/apt/lists/*
COPY --from=build /opt/mneme /usr/local
RUN useradd --system --home-dir /var/lib/mneme --create-home mneme
USER mneme
VOLUME /var/lib/mneme
ENV MNEME_STORE_PATH=/var/lib/mneme \
    MNEME_LISTEN_ADDRESS=0.0.0.0:7447 \
    MNEME_LISTEN_METRICS_ADDRESS=0.0.0.0:7448 \
    MNEME_LISTEN_INSECURE=true
EXPOSE 7447 7448
# SIGTERM drains; give it more than drain.pre_stop_delay_ms + drain.timeout_ms before SIGKILL.
STOPSIGNAL SIGTERM
ENTRYPOINT ["mneme-server"]
